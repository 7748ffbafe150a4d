"""What a job is and which moves are legal."""
