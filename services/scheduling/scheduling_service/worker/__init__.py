"""What runs inside the ranks of exec tasks."""
