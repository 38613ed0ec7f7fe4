"""What every service needs: settings, bus, credentials, streams, letters in and out, health."""
