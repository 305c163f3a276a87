// Locks that die with the process that holds them; runtime/locks.py takes the same.
#pragma once

#include <string>

namespace fqt {

// A file that is closed at the end.
class OpenFile {
 public:
  explicit OpenFile(int descriptor) : descriptor_(descriptor) {}
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;
  ~OpenFile();
  int descriptor() const { return descriptor_; }
  bool IsAt(const std::string& path) const;  // whether `path` still names this file

 private:
  const int descriptor_;
};

// Keeps the folder of an artifact from being replaced; kCannotWrite while it is. Where there are no locks, it does nothing.
class FolderLock {
 public:
  explicit FolderLock(const std::string& folder);

 private:
  OpenFile file_;
};

// The file that `path` names, through symbolic links.
std::string RealPath(const std::string& path);

// What the names of files that accompany the file `real` begin with, in its folder.
std::string HiddenPrefix(const std::string& real);

// kCannotWrite if another process is training and writes `path`.
void CheckNoOtherWriter(const std::string& path);

// Remove what killed writers of `path` left beside it; those of living writers are locked.
void Sweep(const std::string& path);

}  // namespace fqt
