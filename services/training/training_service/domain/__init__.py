"""Trainings and validations: their facts and which move is legal. Imports neither grpc nor sqlalchemy nor torch."""
