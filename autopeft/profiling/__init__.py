"""What is known of the machine, the model and the data before anything is trained."""
