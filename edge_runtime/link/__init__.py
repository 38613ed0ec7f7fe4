"""The MQTT connection to the broker, from the socket up to the conversation with the platform."""
