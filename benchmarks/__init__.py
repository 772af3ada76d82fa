"""What prints each figure that README quotes."""
