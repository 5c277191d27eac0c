"""The loop over arms: items in, answers out, rows into the store."""
