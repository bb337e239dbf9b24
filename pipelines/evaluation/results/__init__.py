"""What was found: figures with their errors (`estimates`), the document (`document`), those of before (`earlier`), all of a run
(`archive`), of several trainings (`seeds`), and as text (`table`, `legend`).
"""
