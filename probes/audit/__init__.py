"""Where context stops working."""
