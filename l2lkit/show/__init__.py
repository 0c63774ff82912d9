"""What people look at: figures, diagrams, explorers, the notebooks' execution and the report."""
