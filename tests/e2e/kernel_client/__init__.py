"""A real Linux kernel as NBD client, run as an ordinary process (User Mode Linux)."""
