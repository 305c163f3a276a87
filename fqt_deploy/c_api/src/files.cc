#include "files.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <vector>

#include "error.h"
#include "locks.h"

namespace fqt {

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  const std::streamoff size = file ? static_cast<std::streamoff>(file.tellg()) : -1;
  // Folders can be opened too; their size is nonsense.
  if (size < 0 || !IsFile(path)) throw Error(kDamaged, "cannot read " + path);
  std::string content(static_cast<size_t>(size), '\0');
  file.seekg(0);
  if (!file.read(content.data(), size)) throw Error(kDamaged, "cannot read " + path);
  return content;
}

bool IsFile(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::is_regular_file(path, ignored);
}

namespace {

bool WriteAll(int file, const std::string& content) {
  for (size_t done = 0; done < content.size();) {
    const ssize_t count = write(file, content.data() + done, content.size() - done);
    if (count < 0 && errno != EINTR) return false;
    if (count > 0) done += static_cast<size_t>(count);
  }
  return fsync(file) == 0;
}

void SyncFolder(const std::string& path) {
  const int folder = open(path.c_str(), O_RDONLY | O_DIRECTORY);
  if (folder < 0) return;
  fsync(folder);
  close(folder);
}

}  // namespace

void ReplaceFile(const std::string& path, const std::string& content) {
  const std::string real = RealPath(path);
  const std::filesystem::path parent = std::filesystem::path(real).parent_path();
  std::error_code ignored;
  if (std::filesystem::exists(real, ignored) && !IsFile(real)) {
    throw Error(kCannotWrite, "cannot write " + path + ": it is not a file");
  }
  Sweep(path);
  // A locked file: what a killed writer leaves behind is removed by the next one.
  const std::string name = (parent.empty() ? "." : parent.string()) + "/" + HiddenPrefix(real) + "c_XXXXXX.part";
  std::vector<char> temporary(name.begin(), name.end());
  temporary.push_back('\0');
  const int file = mkstemps(temporary.data(), 5);
  bool good = file >= 0;
  if (good) flock(file, LOCK_EX);
  good = good && WriteAll(file, content);
  if (file >= 0) {
    const mode_t mask = umask(0);
    umask(mask);
    good = fchmod(file, 0666 & ~mask) == 0 && good;  // mkstemps makes it private
    good = good && rename(temporary.data(), real.c_str()) == 0;
  }
  const std::string reason = std::strerror(errno);
  if (file >= 0) close(file);
  if (!good) {
    if (file >= 0) unlink(temporary.data());
    throw Error(kCannotWrite, "cannot write " + path + ": " + reason);
  }
  SyncFolder(parent.empty() ? "." : parent.string());
}

}  // namespace fqt
