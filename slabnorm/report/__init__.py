"""Plain records in; terminal tables, figures and one self-contained HTML file out."""
