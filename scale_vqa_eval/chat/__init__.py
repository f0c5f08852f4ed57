"""Models behind chat endpoints: asked with pace and budget, every answer kept, so that work resumes."""
