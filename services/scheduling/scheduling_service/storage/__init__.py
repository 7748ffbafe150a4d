"""Tables, repositories, migrations."""
