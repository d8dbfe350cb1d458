"""The upload of one layer, and of many."""
