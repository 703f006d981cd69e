"""Networks by name, the ones that ship, and the demo that runs one."""
