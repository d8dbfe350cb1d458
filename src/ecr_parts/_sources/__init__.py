"""What a layer is read from."""
