"""What happens to a finished adapter: converted for a server, or merged into its base."""
