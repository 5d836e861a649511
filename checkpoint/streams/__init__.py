"""What a job knows of a source: which rows are new, and how far it is safe to say."""
