"""What a run hands over: tables, figures, the report page, exported files."""
