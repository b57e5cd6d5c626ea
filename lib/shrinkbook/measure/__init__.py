"""What a network costs and how long it takes: counted, and timed on this machine or on a phone."""
