"""The request language: from what a user wrote to one canonical form, and who takes it. Pure functions."""
