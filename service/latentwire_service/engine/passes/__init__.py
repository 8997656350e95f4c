"""From the output of a forward pass to what each request gets, and to its next input."""
