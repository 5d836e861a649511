"""What a store holds, prepared for people: names, positions, freshness, runs and history."""
