"""The datasets service: imports records once, so that trainings read them many times."""
