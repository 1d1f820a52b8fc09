"""What the coordinator's people are shown and do, whether by a command or on the page; one function for both."""
