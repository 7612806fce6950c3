"""Python that two rooms share."""
