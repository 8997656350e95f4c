"""What plugs into the service below HTTP, as plain values and protocols."""
