"""stapes: an open workbench for light-weight audio language models."""
