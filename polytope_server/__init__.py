"""REST service in front of petabytes of weather and climate data."""
