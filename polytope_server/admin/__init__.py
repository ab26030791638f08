"""What operators do to a running deployment, from any machine that has its configuration."""
