"""What a run will need and how long a step takes, before any chip is booked."""
