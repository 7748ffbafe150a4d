"""How programs of each framework are run inside a job. Nothing here imports a framework before it is used."""
