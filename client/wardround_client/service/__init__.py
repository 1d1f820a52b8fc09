"""The daemon, and the socket on which it is controlled."""
