"""What is known of one call of a layer: its settings, its plan, its state and its window."""
