"""What is lost when masks that nobody drew are taken for empty ones, and what validity keeps."""
