"""Work that the platform places on this device: installed runners under limits, one result per term."""
