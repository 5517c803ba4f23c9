"""What a user would pick instead of this library, run side by side with it."""
