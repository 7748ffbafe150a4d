"""What code of users is kept from, and as whom it runs. Standard library only: each module is also good as a file."""
