"""`latentwire evaluate`: whether messages through a bridge carry something to the receiver."""
