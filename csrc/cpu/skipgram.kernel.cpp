namespace vecsmith {
namespace VECSMITH_LEVEL {
int skipgram_placeholder() { return 0; }
}  // namespace VECSMITH_LEVEL
}  // namespace vecsmith
