"""One trainer a module; they are found, never listed."""
