"""What runs in processes of their own: searches are thought out here, and installed algorithms run here."""
