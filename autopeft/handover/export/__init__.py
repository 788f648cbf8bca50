"""A plan's candidate as the configuration, or the script, of a trainer that people already use."""
