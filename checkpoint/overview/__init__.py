"""What a store holds, as people ask for it: names, positions, how fresh it is, runs, the past."""
