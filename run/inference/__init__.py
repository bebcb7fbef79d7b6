"""Everything done with a trained model, printing aside: loading it, drawing sample files, scoring data."""
