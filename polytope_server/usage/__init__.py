"""What finished requests have used: the records as lines of a file, and the reports made of them."""
