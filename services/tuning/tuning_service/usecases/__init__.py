"""What clients ask for, and the loop that makes it true."""
