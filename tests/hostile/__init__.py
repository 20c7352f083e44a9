"""What strangers send and write: whatever it is, it is valid or refused in words, and nothing else happens."""
