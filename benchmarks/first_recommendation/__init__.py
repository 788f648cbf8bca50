"""The whole first recommendation against the recipe that people use, on published tables that hold both."""
