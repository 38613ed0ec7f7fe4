"""Requests that services answer and what they answer with; one module per service (`cw.rpc.{service}.{verb}`)."""
