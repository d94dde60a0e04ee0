"""What training changes, kept in memory and put back."""
